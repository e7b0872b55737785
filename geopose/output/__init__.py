"""What predictions become: challenge files, archives, pictures."""
