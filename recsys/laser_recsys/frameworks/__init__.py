"""What the LLM is asked about users and items: frameworks as template files, prompts that fit, answers read back."""
