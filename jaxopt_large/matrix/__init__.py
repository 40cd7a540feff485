"""What matrix rules share: which leaves are matrices, who works on which, and what is done to them."""
