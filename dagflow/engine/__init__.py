"""The stages of a run, one verb in each file, which `dagflow.session` puts in order."""
