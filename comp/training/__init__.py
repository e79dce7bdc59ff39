"""Training inside a run: steps, recovery, distillation, LoRA and reconstruction."""
