"""A diffusers pipeline as a policy: encode, predict, decode. One file per model family."""
