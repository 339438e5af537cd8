"""One LightningModule per published method; see ``configs/model`` for the list."""
