"""A captured program as one self-contained C source: no runtime, no allocation, one function."""
