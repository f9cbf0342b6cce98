"""Packed models for other runtimes: ONNX Runtime and OpenVINO, each file verified after it is written."""
