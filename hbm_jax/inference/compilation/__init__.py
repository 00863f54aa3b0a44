"""Compilation: devices, the compilation cache, and large constants as arguments."""
