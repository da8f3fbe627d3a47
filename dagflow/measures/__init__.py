"""What is measured of images and models that no reward says: looks, diversity, drift."""
