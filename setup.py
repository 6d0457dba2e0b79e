"""Builds dataplane._engine, the C engine, through cffi's API mode (one abi3 wheel for all CPythons)."""

from setuptools import setup

setup(cffi_modules=["csrc/build.py:ffi"])
