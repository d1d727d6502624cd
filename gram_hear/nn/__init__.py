"""The networks: patches, backbones, and the masked autoencoder."""
