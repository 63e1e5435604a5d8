# SPDX-License-Identifier: Apache-2.0
"""Trains small transformers on text tasks in plain PyTorch: an encoder for classification and sentiment, an encoder-decoder for
translation and summarisation, a causal decoder for language modelling. Knows nothing of kjoule.

    train_text.py TASK [--steps N] [--device cpu|cuda] [--exit STATUS]

Data is generated from a seed (the language model reads the text in data/): load, forward, backward, optimizer step, evaluate.
"""
import argparse
import pathlib
import random
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

PAD, BEGIN, END, FIRST_WORD = 0, 1, 2, 3
TOPICS = {
    "sport": "match goal team coach season league ball player win cup".split(),
    "money": "bank price market share profit loan tax trade budget rate".split(),
    "health": "doctor patient heart drug trial nurse virus clinic dose cure".split(),
    "sky": "star planet orbit comet lens rocket moon dust galaxy probe".split(),
}
COMMON = "the a of in on with and for to from by at after before new old big small".split()
GOOD = "good great fine lovely bright warm".split()
BAD = "bad awful dull poor cold sad".split()
NOUNS = "cat dog house river tree child road song bread lamp".split()
ADJECTIVES = "red green tall quiet quick heavy".split()
VERBS = "sees finds likes carries leaves".split()


class Words:
    """Numbers words in order of first use."""

    def __init__(self):
        self.index = {}

    def ids(self, words):
        return [self.index.setdefault(word, len(self.index) + FIRST_WORD) for word in words]

    def __len__(self):
        return len(self.index) + FIRST_WORD


def classification(rng, words):
    topic = rng.randrange(len(TOPICS))
    own = list(TOPICS.values())[topic]
    text = [rng.choice(own) if rng.random() < 0.3 else rng.choice(COMMON) for _ in range(24)]
    return words.ids(text), topic


def sentiment(rng, words):
    text, score = [], 0
    for _ in range(5):
        sign, negated = rng.choice((-1, 1)), rng.random() < 0.3
        text += [rng.choice(NOUNS), "is"] + ["not"] * negated + [rng.choice(GOOD if sign > 0 else BAD)]
        score += -sign if negated else sign
    return words.ids(text), int(score > 0)


def sentence(rng):
    return [rng.choice(ADJECTIVES), rng.choice(NOUNS), rng.choice(VERBS), rng.choice(ADJECTIVES), rng.choice(NOUNS)]


def translation(rng, words):
    """Into a made-up language: other words, and the adjective after the noun."""
    a, b, verb, c, d = sentence(rng)
    return words.ids([a, b, verb, c, d]), words.ids([f"{w}o" for w in (b, a, verb, d, c)])


def summarisation(rng, words):
    """The summary is subject, verb and object of the sentence that is called important."""
    sentences = [sentence(rng) for _ in range(3)]
    chosen = rng.randrange(3)
    text = [w for i, s in enumerate(sentences) for w in (["important"] if i == chosen else []) + s + ["."]]
    _, subject, verb, _, thing = sentences[chosen]
    return words.ids(text), words.ids([subject, verb, thing])


class Pairs(Dataset):
    def __init__(self, make, seed, count, words):
        rng = random.Random(seed)
        self.items = [make(rng, words) for _ in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def pad(rows):
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def collate_labelled(batch):
    return pad([text for text, _ in batch]), torch.tensor([label for _, label in batch])


def collate_translated(batch):
    return pad([a for a, _ in batch]), pad([[BEGIN] + b + [END] for _, b in batch])


class Embedding(nn.Module):
    def __init__(self, vocabulary, width, longest=128):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.position = nn.Embedding(longest, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids):
        return self.norm(self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device)))


class Classifier(nn.Module):
    """BERT-shaped: bidirectional encoder, first position pooled."""

    def __init__(self, vocabulary, classes, width=64):
        super().__init__()
        self.embedding = Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, ids):
        hidden = self.encoder(self.embedding(ids), src_key_padding_mask=ids.eq(PAD))
        return self.head(torch.tanh(self.pool(hidden.mean(1))))

    def loss(self, batch):
        ids, labels = batch
        return F.cross_entropy(self(ids), labels)

    def hits(self, batch):
        ids, labels = batch
        return self(ids).argmax(-1).eq(labels)


class Translator(nn.Module):
    """Encoder and decoder, teacher forcing."""

    def __init__(self, vocabulary, width=64):
        super().__init__()
        self.embedding = Embedding(vocabulary, width)
        self.body = nn.Transformer(width, 4, 1, 1, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, source, target):
        mask = torch.triu(torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device), 1)
        hidden = self.body(self.embedding(source), self.embedding(target), tgt_mask=mask, src_key_padding_mask=source.eq(PAD),
                           memory_key_padding_mask=source.eq(PAD))
        return self.head(hidden)

    def loss(self, batch):
        source, target = batch
        return F.cross_entropy(self(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)

    def hits(self, batch):
        source, target = batch
        right = self(source, target[:, :-1]).argmax(-1).eq(target[:, 1:])
        return right[target[:, 1:].ne(PAD)]


class LanguageModel(nn.Module):
    """GPT-shaped: causal blocks, next byte."""

    def __init__(self, vocabulary, width=64):
        super().__init__()
        self.embedding = Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        mask = torch.triu(torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device), 1)
        return self.head(self.blocks(self.embedding(ids), mask=mask))

    def loss(self, batch):
        (ids,) = batch
        return F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def hits(self, batch):
        (ids,) = batch
        return self(ids[:, :-1]).argmax(-1).eq(ids[:, 1:])


class Text(Dataset):
    def __init__(self, data, length=64):
        self.data, self.length = data, length

    def __len__(self):
        return len(self.data) // self.length * 8

    def __getitem__(self, i):
        at = i * 7919 % (len(self.data) - self.length - 1)
        return (self.data[at : at + self.length + 1],)


def make_task(task):
    """model, training set, evaluation set, collate"""
    if task == "gpt":
        text = "".join(p.read_text() for p in sorted((pathlib.Path(__file__).parent / "data").glob("*.txt")))
        letters = {c: i + 1 for i, c in enumerate(sorted(set(text)))}
        data = torch.tensor([letters[c] for c in text])
        cut = len(data) * 9 // 10
        return LanguageModel(len(letters) + 1), Text(data[:cut]), Text(data[cut:]), None
    words, make = Words(), globals()[task]
    train, evaluation = Pairs(make, 1, 2048, words), Pairs(make, 2, 256, words)
    if task in ("classification", "sentiment"):
        classes = len(TOPICS) if task == "classification" else 2
        return Classifier(len(words), classes), train, evaluation, collate_labelled
    return Translator(len(words)), train, evaluation, collate_translated


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["classification", "sentiment", "translation", "summarisation", "gpt"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--exit", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(3)
    model, train, evaluation, collate = make_task(options.task)
    model = model.to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = DataLoader(train, 32, shuffle=True, collate_fn=collate, drop_last=True)
    step = 0
    while step < options.steps:
        for batch in loader:
            loss = model.loss([part.to(options.device) for part in batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 10 == 0 or step == 1:
                print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
            if step == options.steps:
                break
    model.eval()
    with torch.no_grad():
        hits = torch.cat([model.hits([part.to(options.device) for part in batch]).flatten()
                          for batch in DataLoader(evaluation, 32, collate_fn=collate)])
    print(f"{options.task}: {hits.float().mean().item():.3f} right of {hits.numel()}")
    sys.exit(options.exit)


if __name__ == "__main__":
    main()
