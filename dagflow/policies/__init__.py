"""A diffusers pipeline seen as a policy: encode, predict, decode. One file a model family."""
