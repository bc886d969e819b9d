"""Base models, LoRA, and the PEFT adapter folder. The only room on its floor that knows torch."""
