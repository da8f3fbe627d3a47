"""Pure tensor mathematics of the Gaussian path: schedule, predicted x0, log p, log q."""
