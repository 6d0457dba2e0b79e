"""Builds dataplane._engine, the C engine, through cffi's API mode: one abi3 wheel for CPython."""

from setuptools import setup

setup(cffi_modules=["csrc/build.py:ffi"])
