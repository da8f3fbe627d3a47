"""The stages of a run, one verb in each file, which `dagflow.train` puts in order."""
