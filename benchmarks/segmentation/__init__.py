"""An example: NeoNeXt as the encoder of a segmentation network whose decoder enlarges maps with NeoCells."""
