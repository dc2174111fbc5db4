"""onnxfi"""
