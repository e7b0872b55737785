"""What configs may say: schemas, numbers, and keys that have gone."""
