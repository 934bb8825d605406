"""bpkit against the samples that PyTorch tests itself with."""
