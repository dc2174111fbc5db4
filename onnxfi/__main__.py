"""`python -m onnxfi`."""

from onnxfi.cli import main

main()
