"""An architecture of `transformers` a file: its config ↔ ours, and how its tensors are ours.

family.py      `Family`, what each file gives
gpt2.py        GPT-2
llama.py       Llama 2 and 3, Mistral, Qwen2, Qwen3: one set of names
bert.py        BERT
modern_bert.py ModernBERT
vit.py         ViT
towers.py      CLIP, SigLIP; pictures.py: what these three have in common
registry.py    all of them
"""
