"""The coordinator's models: kept in signed versions, each with a card, and exported for programs that don't have konsil.

`seal` signs a folder and says what was changed in one, `shelf` keeps versions, `learned` reads what a run has learned, `card`
tells it in words, and `export` writes it as TorchScript, ONNX, a MONAI bundle or JSON.
"""
