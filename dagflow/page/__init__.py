"""The report as a page to look at: `dagflow report RUN`."""
