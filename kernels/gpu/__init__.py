"""The GPU's forms of the operations: Triton kernels, each beside its launcher and its table of configurations.

Imported only where the device is a GPU (`kernels.select`), by the tests, and by `python -m kernels.gpu.ahead_of_time`.
"""
