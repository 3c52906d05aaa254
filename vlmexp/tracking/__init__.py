"""Where the metrics of a run go beside its directory: Weights & Biases, TensorBoard, or nowhere."""
