"""Stars thrown out of globular clusters, and the field stars they are seen among."""
