# SPDX-License-Identifier: Apache-2.0
"""The four text tasks with Hugging Face `transformers` and its Trainer, on randomly initialised configurations and data made here. Knows
nothing of kjoule, and needs no network.

    train_hf.py classification|sentiment|translation|summarisation [--steps N]
"""
import argparse
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils.data import Dataset
from transformers import (BartConfig, BartForConditionalGeneration, BertConfig, BertForSequenceClassification, T5Config,
                          T5ForConditionalGeneration, Trainer, TrainingArguments, set_seed)

import train_text as tasks

VOCABULARY, LENGTH = 256, 24


class Made(Dataset):
    def __init__(self, task, seed, count):
        words = tasks.Words()
        self.labelled = task in ("classification", "sentiment")
        self.items = tasks.Pairs(getattr(tasks, task), seed, count, words).items
        assert len(words) < VOCABULARY

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        source, target = self.items[i]
        source = (source + [tasks.PAD] * LENGTH)[:LENGTH]
        item = {"input_ids": torch.tensor(source), "attention_mask": torch.tensor([int(w != tasks.PAD) for w in source])}
        if self.labelled:
            return {**item, "labels": torch.tensor(target)}
        return {**item, "labels": torch.tensor((target + [tasks.END] + [-100] * 8)[:8])}


def make_model(task):
    if task in ("classification", "sentiment"):
        classes = len(tasks.TOPICS) if task == "classification" else 2
        return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2,
                                                        num_attention_heads=4, intermediate_size=128, num_labels=classes))
    if task == "translation":
        return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
                                                   decoder_start_token_id=tasks.BEGIN))
    return BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY, d_model=64, encoder_layers=2, decoder_layers=2,
                                                   encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
                                                   decoder_ffn_dim=128, max_position_embeddings=64, pad_token_id=tasks.PAD,
                                                   bos_token_id=tasks.BEGIN, eos_token_id=tasks.END,
                                                   decoder_start_token_id=tasks.BEGIN))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["classification", "sentiment", "translation", "summarisation"])
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    set_seed(5)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, max_steps=options.steps, per_device_train_batch_size=16, logging_steps=25,
                                      save_strategy="no", report_to=[], disable_tqdm=True, seed=5)
        trainer = Trainer(make_model(options.task), arguments, train_dataset=Made(options.task, 1, 1024),
                          eval_dataset=Made(options.task, 2, 64))
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        print("losses", *losses)
        print("evaluation", trainer.evaluate()["eval_loss"])


if __name__ == "__main__":
    main()
