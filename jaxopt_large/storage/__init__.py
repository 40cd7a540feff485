"""The formats in which state and parameters are kept between steps."""
