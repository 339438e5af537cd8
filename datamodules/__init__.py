"""One LightningDataModule per component, and the tables they read and write."""
