"""The stages of a run, one verb in each file. Stages import the value types, never one another."""
