"""Tools for SageMaker users, run as `python -m sagemaker …` from the repository; not installed with the wheel.

Knows SageMaker's protocols and the container contract. Must not know the engine or the container's inside: everything
here works with any image that keeps the contract.
"""
