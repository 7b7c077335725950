"""The gRPC contract, `vision.proto`, and the code that `make proto` generates from it."""
