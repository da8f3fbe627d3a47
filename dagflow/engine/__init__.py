"""The stages of a run, one verb per file; `dagflow.session` puts them in order."""
