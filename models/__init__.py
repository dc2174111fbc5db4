"""Small trained networks and labelled images, as files: `importlib.resources.files("onnxfi.models")` finds them."""
