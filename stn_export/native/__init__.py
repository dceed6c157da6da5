"""Write a captured program as self-contained C source: no runtime, no allocation, one function."""
