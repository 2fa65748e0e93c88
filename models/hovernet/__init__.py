"""The back end: HoVer-Net, its targets, losses and post-processing."""
