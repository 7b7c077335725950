"""A CUDA runtime without a card, under the real torch and ONNX Runtime for CUDA.

    runtime.c, libraries.c   memory, streams, captures, graphs; cuBLAS and cuDNN: kernels do nothing
    environment              `python -m tests.support.fake_cuda.environment`: installs the two
                             packages in build/fake-cuda and compiles the libraries beside them
    scenarios                what the tests run in that environment, one process each

It proves structure: captures, launches, copies, waits, allocations, recovery. It proves no numbers
and no speed.
"""
