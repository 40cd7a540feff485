"""One pass over memory for a whole step: the traced step taken apart by leaf, and run as kernels or loops."""
