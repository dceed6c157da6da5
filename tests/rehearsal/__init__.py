"""CUDA on the CPU: every row of a GPU runs here behind a stand-in with CUDA's rules, each of which is shown to bite.

It says nothing of speed, of cuDNN's and cuBLAS's numbers, or of what the compiler makes; it says that what would be
launched, recorded, waited for and read is in order.
"""
