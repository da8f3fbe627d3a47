"""The report as a web page: `dagflow report RUN`."""
