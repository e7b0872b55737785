"""What only a GPU can show, step by step; scripts/gpu_check.sh runs it."""
