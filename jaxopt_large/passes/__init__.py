"""A traced step as passes over the arrays of one parameter after another."""
