"""Documents: bytes and pieces, files and corpora, the Transformer pair, and a run of them by the commands."""

import json
import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_normal, randomise
from test_cli import call
from torch import Tensor, nn

import pyro_delta
from pyro_delta.api.judge import extras_of
from pyro_delta.data import Split, load
from pyro_delta.data.sequences import TextSpec, TokenSpec
from pyro_delta.data.sequences import documents as of_text
from pyro_delta.data.sequences.pieces import learned, size_of_vocabulary
from pyro_delta.diagnostics.bounds import Encoding, Unit, encode, evaluate, per_measure
from pyro_delta.distributions.sequences import AutoregressiveTokens
from pyro_delta.errors import UserError
from pyro_delta.models import AR1Prior, TransformerLikelihood
from pyro_delta.nn.sequences.transformer import CausalTransformer, rotation, turned
from pyro_delta.rate import ar1_committed_rate

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "house", "old", "grey", "and", "then")
ODD = ["  two  spaces ", "naïve — “quoted” ☃", "tab\there", "line\nbreak", " ", "x", "é" * 9]
SMALL = ["--set", "data.length=null", "--set", "data.cut=false", "--set", "prior.alpha=0.6",
         "--set", "likelihood.hidden=8", "--set", "likelihood.layers=1", "--set", "likelihood.heads=2",
         "--set", "guide.hidden=8", "--set", "guide.layers=1", "--set", "guide.heads=1",
         "--set", "training.batch=4"]  # fmt: skip


def sentences_of(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 9))) + " ." for _ in range(count)]


def documents(spec: TextSpec, texts: list[str], labels: list[int] | None = None, *, cut: bool = False) -> Split:
    return of_text.documents(spec, [spec.tokens(text) for text in texts], labels, cut=cut)


@pytest.fixture(scope="module")
def pieces() -> str:
    return learned(sentences_of(200), 290)


@pytest.fixture(params=["bytes", "pieces"])
def spec(request: pytest.FixtureRequest, pieces: str) -> TextSpec:
    model = pieces if request.param == "pieces" else None
    return TextSpec(60, 256 if model is None else size_of_vocabulary(model), pieces=model)


# --- tokens ---


def test_texts_come_back_as_they_are(spec: TextSpec, tmp_path: Path) -> None:
    """Whatever they hold, by tokens and by files."""
    split = documents(spec, [*ODD, *sentences_of(20)])
    assert spec.texts(split.x) == [*ODD, *sentences_of(20)]
    ends = (split.x == 0).int().argmax(1) + 1
    assert torch.equal(split.extras["lengths"], ends)
    assert torch.equal(spec.beside(split.x)["lengths"], ends)
    spec.show(split.x, tmp_path / "x.txt", columns=4)
    back, names = spec.open(tmp_path / "x.txt")
    shown = torch.tensor([bool(text.strip()) for text in spec.texts(split.x)])  # blank lines are passed over
    assert torch.equal(back, split.x[shown])
    assert names[:2] == ["x.txt/1", "x.txt/2"]
    assert torch.equal(spec.open(tmp_path / "x.txt", 2)[0], split.x[:2])


def test_pieces_are_words_where_they_can_be(pieces: str) -> None:
    """And the same pieces each time they are learned."""
    assert learned(sentences_of(200), 290) == pieces
    spec = TextSpec(60, size_of_vocabulary(pieces), pieces=pieces)
    assert len(spec.tokens("the cat sat on the mat .")) < len("the cat sat on the mat .") * 0.6
    assert spec.texts(torch.tensor([[0, 5, 5], spec.tokens("the")[:1] * 3])) == ["", "the the the"]


def test_what_bounds_are_told_per(spec: TextSpec) -> None:
    texts = ["the cat .", "naïve", "a\nb"]
    found = spec.measures(documents(spec, texts).x)
    assert found == {"byte": [10, 7, 4], "word": [4, 2, 3]}  # each with its end


def test_bytes_are_counted_within_characters_too(pieces: str) -> None:
    """Of text without spaces, which is cut anywhere."""
    text = "こんにちは世界🙂" * 5
    for model in (None, pieces):
        spec = TextSpec(11, 256 if model is None else size_of_vocabulary(model), pieces=model)
        split = documents(spec, [text], cut=True)
        assert sum(spec.measures(split.x)["byte"]) == len(text.encode()) + len(split)
        assert int(split.surplus["byte"].sum()) == len(split) - 1


@pytest.mark.parametrize("length", [7, 11, 400])
def test_a_document_counts_its_words_and_one_end_however_it_is_cut(spec: TextSpec, length: int) -> None:
    """Be it cut before words or within them, and in whatever order the parts stand."""
    texts = [*ODD, *sentences_of(20), "x" * 40, "a\u3000b" * 9, "one " + "y" * 30 + "\nlast", ""]
    split = documents(TextSpec(length, spec.levels, pieces=spec.pieces), texts, cut=True)
    split = split.take(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))).to("cpu")
    silent = Encoding(
        rate=torch.zeros(len(split), dtype=torch.float64),
        closed_form=True,
        distortion=split.extras["lengths"].double() * math.log(2),  # a bit for each token
        mean={},
        scale={},
        z={},
        mean_field=True,
        apart=True,
        scored=1.0,
    )
    found = per_measure(TextSpec(length, spec.levels, pieces=spec.pieces), split, silent, Unit(1.0))
    bits = int(split.extras["lengths"].sum())
    assert bits / found["bits_per_word"] == pytest.approx(sum(len(text.split()) + 1 for text in texts))
    assert bits / found["bits_per_byte"] == pytest.approx(sum(len(text.encode()) + 1 for text in texts))
    assert (len(split) > len(texts)) == (length < 60)


def test_a_perplexity_beyond_all_numbers_is_infinite_and_no_word_gives_none() -> None:
    spec = TextSpec(7, 256)
    split = documents(spec, ["x" * 18], cut=True)
    encoding = Encoding(
        torch.zeros(3), True, torch.full((3,), 2000.0, dtype=torch.float64), {}, {}, {}, True, True, scored=1.0
    )
    assert per_measure(spec, split, encoding, Unit(1.0))["perplexity_per_word"] == math.inf
    middle = per_measure(spec, split.take(slice(1, 2)), encoding.take(torch.tensor([1])), Unit(1.0))
    assert "bits_per_word" not in middle
    assert middle["bits_per_byte"] > 0


def test_long_documents_are_cut_before_words(spec: TextSpec) -> None:
    """Nothing is lost, no word is in two parts, and each part is a document of its own."""
    short = TextSpec(12, spec.levels, pieces=spec.pieces)
    texts = [*sentences_of(30), "x" * 40]
    split = documents(short, texts, list(range(31)), cut=True)
    assert split.labels is not None
    for label, text in enumerate(texts):
        rows = split.x[split.labels == label]
        parts = short.texts(rows)
        assert " ".join(part.strip() for part in parts) == text if " " in text else "".join(parts) == text
        assert sum(map(len, map(str.split, parts))) == len(text.split()) or " " not in text
    assert torch.equal(split.extras["lengths"], short.beside(split.x)["lengths"])
    assert (split.extras["lengths"] > 8).sum() > 20


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: TextSpec(4, 257), "257 levels do not fit bytes, of which there are 256"),
        (lambda: TextSpec(4, 256, alphabet="ab"), "documents have bytes or pieces, and no alphabet 'ab'"),
        (lambda: TextSpec(0, 256), "data of shape \\(0,\\) hold nothing"),
        (lambda: TextSpec(4, 256, pieces="AAAA"), "the pieces 'AAAA'… are no model of SentencePiece"),
        (lambda: TextSpec(4, 256).tokens("a\0b"), "the character NUL is in no text"),
        (lambda: learned(sentences_of(9), 100), "data.vocabulary=100 does not fit this text; give"),
        (lambda: learned(sentences_of(9), 9000), "data.vocabulary=9000 does not fit this text; give at most"),
    ],
)
def test_what_no_documents_are_is_refused(made: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        made()  # type: ignore[operator]


def test_a_space_of_pieces_is_no_character(pieces: str) -> None:
    spec = TextSpec(9, size_of_vocabulary(pieces), pieces=pieces)
    with pytest.raises(UserError, match="the character '▁' stands for a space in pieces; take it out"):
        spec.tokens("a▁b")


# --- files and corpora ---


def test_a_file_is_divided(tmp_path: Path) -> None:
    """Equal documents are in one split, the test documents are those of every seed, and CRLF and a mark do no harm."""
    texts = [*sentences_of(60), *(["again and again ."] * 12)]
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(texts).encode())
    data, other = load(f"text:{path}"), load(f"text:{path}", seed=1)
    found = {part: data.spec.texts(getattr(data, part).x) for part in ("train", "validation", "test")}
    assert sorted(chain.from_iterable(found.values())) == sorted(texts)
    assert sum("again and again ." in part for part in found.values()) == 1
    assert 6 <= len(found["test"]) <= 18
    assert data.spec.texts(other.test.x) == found["test"]
    assert data.spec.texts(other.validation.x) != found["validation"]
    assert data.spec.length == max(map(len, texts)) + 1
    assert len(load(f"text:{path}", validation=9).validation) >= 9


def test_what_comes_again_and_again_stays_in_training(tmp_path: Path) -> None:
    """However often, so that a tenth is a tenth; and little text can be divided, too."""
    for times, others in ((1000, 30), (1000, 200), (100, 6), (5, 2)):
        path = tmp_path / f"{times}-{others}.txt"
        path.write_text("\n".join(["again and again"] * times + [f"document {i}" for i in range(others)]))
        data = load(f"text:{path}")
        assert data.spec.texts(data.train.x).count("again and again") == times
        assert 1 <= len(data.test) <= others / 2
        assert 1 <= len(data.validation) <= others / 2


def test_a_folder_says_its_splits(tmp_path: Path) -> None:
    parts = {"train": sentences_of(20), "test": sentences_of(5, 1), "valid": sentences_of(4, 2)}
    for name, texts in parts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    data = load(f"text:{tmp_path}", tokens="pieces", vocabulary=285)
    assert sorted(data.spec.texts(data.validation.x)) == sorted(parts["valid"])
    assert sorted(data.spec.texts(data.test.x)) == sorted(parts["test"])
    assert data.spec.levels == 285
    assert len(load(f"text:{tmp_path}", validation=2).validation) == 2
    (tmp_path / "valid.txt").unlink()
    assert len(load(f"text:{tmp_path}").validation) == 2


def corpus(folder: Path) -> Path:
    """A small one, as Brown's is laid out."""
    folder.mkdir(parents=True)
    genres = {}
    for letter, genre in (("a", "news"), ("b", "editorial")):
        for number in range(1, 5):
            name = f"c{letter}{number:02}"
            genres[name] = genre
            lines = [" ".join(f"{word}/nn" for word in text.split()) for text in sentences_of(9, number)]
            (folder / name).write_text("\n\n\t" + "\n\n\n\t".join([*lines, "1\\/2/cd ``/`` either/or/cc"]) + "\n")
    (folder / "cats.txt").write_text("".join(f"{name} {genre}\n" for name, genre in genres.items()) + "\n")
    (folder / "README").write_text("a corpus")
    return folder


def test_a_corpus_as_nltk_has_it(tmp_path: Path) -> None:
    """Tags are left out, texts are in one split each, and genres are the labels."""
    corpus(tmp_path / "corpora" / "brown")
    for root in (tmp_path, tmp_path / "corpora", tmp_path / "corpora" / "brown"):
        data = load("brown", root=str(root), vocabulary=290)
        assert data.classes == ("editorial", "news")
    texts = data.spec.texts(data.train.x)
    assert texts.count("1\\/2 `` either/or") == 4
    assert [len(part) for part in (data.train, data.validation, data.test)] == [40, 20, 20]
    assert torch.bincount(data.test.labels).tolist() == [10, 10]
    assert len(load("brown", root=str(tmp_path), vocabulary=290, validation=3).validation) == 3


def spoiled(name: str, folder: Path) -> str:
    """Data that cannot be read, by name."""
    path = folder / "x.txt"
    path.write_text("\n".join(sentences_of(30)))
    brown = folder / "brown"
    if name.startswith("brown"):
        corpus(brown)
    match name:
        case "empty":
            path.write_text("\n \n")
        case "mixed encodings":
            path.write_bytes("naïve\nnaïve".encode() + "\nnaïve".encode("latin-1"))
        case "utf-16":
            path.write_bytes("text".encode("utf-16"))
        case "utf-32":
            path.write_bytes("text".encode("utf-32"))
        case "utf-16 without a mark":
            path.write_bytes("text".encode("utf-16-le"))
        case "lines of an old Macintosh":
            path.write_bytes(b"one\rtwo\rthree\r")
        case "nul":
            path.write_bytes(b"a\nb\0c\n")
        case "one document":
            path.write_text("one\n")
        case "one document, often":
            path.write_text("one\n" * 9)
        case "too long":
            path.write_text("\n".join([*sentences_of(9), "word " * 300]))
        case "not there":
            path.unlink()
        case "a folder without test.txt":
            (folder / "train.txt").write_text("a\n")
            return f"text:{folder}"
        case "a folder of one":
            (folder / "train.txt").write_text("a\na\n")
            (folder / "test.txt").write_text("a\n")
            return f"text:{folder}"
        case "brown: a text is missing":
            (brown / "ca01").unlink()
        case "brown: a word without a tag":
            (brown / "ca01").write_text("a/at dog\n")
        case "brown: not UTF-8":
            (brown / "ca01").write_bytes(b"a/at \xe9/nn\n")
    return "brown" if name.startswith("brown") or name == "no corpus" else f"text:{path}"


SPOILED = {
    "empty": "has no text; give a file with a document a line.",
    "mixed encodings": "line 3 of {folder}/x.txt is not UTF-8: the byte 0xef at place 3; convert the file.",
    "utf-16": "x.txt is text in UTF-16; convert it to UTF-8.",
    "utf-32": "x.txt is text in UTF-32; convert it to UTF-8.",
    "utf-16 without a mark": "line 1 of {folder}/x.txt has the character NUL, which is in no text in UTF-8; take it "
    "out, or convert a file in UTF-16.",
    "nul": "line 2 of {folder}/x.txt has the character NUL, which is in no text in UTF-8; take it out, or convert a "
    "file in UTF-16.",
    "lines of an old Macintosh": "x.txt has 1 documents, 1 of them different; training, validation and test take one "
    "each at least, so give more text, a document a line.",
    "one document": "x.txt has 1 documents, 1 of them different; training, validation and test take one each at least",
    "a folder of one": "train.txt has one document, and validation takes one; give more text.",
    "too many held out": "has 27 documents for training and validation, of which 27 cannot be held out; ask for 1 "
    "to 26.",
    "one document, often": "has 9 documents, 1 of them different; training, validation and test take one each at least",
    "too long": "has a document of 1501 tokens, 'word word word word word word word word '…, and 1024 are the most; "
    "set data.length=1501, or data.cut=true, which makes several of longer ones.",
    "not there": "cannot read {folder}/x.txt (No such file or directory); give a text file.",
    "a folder without test.txt": "has no test.txt; give a folder with train.txt and test.txt, or one text file.",
    "no corpus": "the Brown corpus is not in {folder}/brown; nltk.download('brown', download_dir=…) gets it",
    "brown: a text is missing": "is not whole: ca01 is only a file or only in cats.txt; get the corpus again.",
    "brown: a word without a tag": "line 1 of {folder}/brown/ca01 has 'dog' without a tag; get the corpus again.",
    "brown: not UTF-8": "{folder}/brown/ca01 is not text in UTF-8; get the corpus again.",
}


@pytest.mark.parametrize("name", SPOILED)
def test_text_that_cannot_be_read_is_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, exit 2, and no run."""
    monkeypatch.chdir(tmp_path)
    dataset = spoiled(name, tmp_path)
    more = ["--data-root", tmp_path] if dataset == "brown" else SMALL
    more = [*more, "--set", "data.validation=27"] if name == "too many held out" else more
    code, out, err = call("train", "--dataset", dataset, *more, "--steps", 1, "--out", "n")
    assert code == 2, (out, err)
    assert SPOILED[name].format(folder=tmp_path) in " ".join(err.split())
    assert not Path("n").exists()


# --- the Transformer ---


class Plain(nn.Module):
    """The trunk as torch's own layers make it: post-hoc masks, and rotations as complex numbers."""

    def __init__(self, trunk: CausalTransformer) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, v_bth: Tensor) -> Tensor:
        for block in self.trunk.blocks:
            batch, positions, hidden = v_bth.shape
            size = hidden // block.heads
            angle_ts = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(0, size, 2).double() / size)
            turn_ts = torch.polar(torch.ones_like(angle_ts), angle_ts)
            normed = nn.functional.layer_norm(
                v_bth, (hidden,), block.before_attention.weight, block.before_attention.bias
            )
            query, key, value = block.query_key_value(normed).reshape(batch, positions, 3, block.heads, size).unbind(2)

            def turn(part: Tensor) -> Tensor:
                point = torch.complex(part[..., : size // 2], part[..., size // 2 :]) * turn_ts[:, None]  # noqa: B023
                return torch.cat((point.real, point.imag), -1)

            score = torch.einsum("bqas,btas->baqt", turn(query), turn(key)) / math.sqrt(size)
            future = torch.ones(positions, positions, dtype=torch.bool).triu(1)
            weight = score.masked_fill(future, -math.inf).softmax(-1)
            v_bth = v_bth + block.merge(torch.einsum("baqt,btas->bqas", weight, value).flatten(2))
            v_bth = v_bth + block.narrow(nn.functional.gelu(block.widen(block.before_perceptron(v_bth))))
        return self.trunk.norm(v_bth)


def trunk(positions: int = 7) -> CausalTransformer:
    return randomise(CausalTransformer(12, layers=2, heads=3, positions=positions))  # type: ignore[return-value]


def test_the_trunk_is_what_the_formulas_say() -> None:
    network, v_bth = trunk(), random_normal(2, 7, 12)
    torch.testing.assert_close(network(v_bth), Plain(network)(v_bth))
    torch.testing.assert_close(network(v_bth[:, :4]), network(v_bth)[:, :4])


def test_the_trunk_position_by_position() -> None:
    network, v_bth = trunk(), random_normal(3, 7, 12)
    state = network.start(v_bth[:, 0])
    found = [network.step(state, position, v_bth[:, position]) for position in range(7)]
    torch.testing.assert_close(torch.stack(found, 1), network(v_bth))


def test_turns_tell_distances_alone() -> None:
    turn_2ts = rotation(40, random_normal(8), 1)
    query, key = random_normal(8), random_normal(8, seed=1)
    near = turned(query, turn_2ts[:, 5]) @ turned(key, turn_2ts[:, 2])
    far = turned(query, turn_2ts[:, 38]) @ turned(key, turn_2ts[:, 35])
    torch.testing.assert_close(near, far)
    assert abs(near - turned(query, turn_2ts[:, 5]) @ turned(key, turn_2ts[:, 3])) > 1e-3


def test_features_that_heads_cannot_share_are_refused() -> None:
    with pytest.raises(UserError, match="heads=3 cannot share 9 hidden features in pairs"):
        CausalTransformer(9, layers=1, heads=3, positions=4)


def test_samples_end_where_a_text_does() -> None:
    """What is drawn after the first end is 0, without which all is as in a model that knows no end."""
    spec = TextSpec(40, 256)
    prior = AR1Prior(spec, dims=1, alpha=0.5)
    torch.manual_seed(0)
    network = TransformerLikelihood(spec, prior, hidden=8, layers=1, heads=2).network
    with torch.no_grad():
        network.out.bias[0] = 3.0
    p = AutoregressiveTokens(network, prior().sample((50,)))
    uniforms = p.noise(50)
    x = p.sample(uniforms=uniforms)
    network.end = None
    endless = p.sample(uniforms=uniforms)
    after = (endless == 0).cumsum(1) - (endless == 0).int() > 0
    assert after.any()
    assert torch.equal(x, torch.where(after, 0, endless))
    assert (endless[after] != 0).any()
    assert TokenSpec(4, 5).end is None


# --- runs ---


def test_a_run_of_text_by_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file to training, check, samples, codes, reconstructions, paths and a page; both backends agree."""
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("\n".join(sentences_of(80)))
    options = ["--dataset", "text:x.txt", *SMALL, "--set", "data.tokens=pieces", "--set", "data.vocabulary=290"]
    for arguments in (
        ("train", *options, "--steps", 2, "--set", "training.log_every=1", "--out", "run"),
        ("sample", "run", "--num", 3, "--out", "drawn.txt"),
        ("encode", "run", "test", "--out", "z.nc"),
        ("reconstruct", "run", "test", "--num", 2, "--out", "back.txt"),
        ("interpolate", "run", "test", "--pairs", 1, "--steps", 3, "--out", "path.txt"),
        ("report", "run", "--out", "page.html"),
    ):
        code, out, err = call(*arguments)
        assert code == 0, (arguments, out, err)
    run = pyro_delta.load("run")
    test = run.data().test
    assert Path("back.txt").read_text().split("\n")[:2] == run.spec.texts(test.x[:2])
    assert Path("path.txt").read_text().split("\n")[0] == run.spec.texts(test.x[:1])[0]

    numbers = json.loads(call("evaluate", "run", "--json")[1])
    encoding, texts = encode(run.vae, test), run.spec.texts(test.x)
    bits = (encoding.rate + encoding.distortion).sum().item() / math.log(2)
    assert numbers["bits_per_byte"] == pytest.approx(bits / sum(len(text) + 1 for text in texts))
    assert numbers["bits_per_word"] == pytest.approx(bits / sum(len(text.split()) + 1 for text in texts))
    assert numbers["perplexity_per_word"] == pytest.approx(2 ** numbers["bits_per_word"])
    assert numbers["neg_elbo_bpd"] == pytest.approx(bits / int(test.extras["lengths"].sum()))
    assert "bits/word" in call("evaluate", "run")[1]
    terms = (encoding.rate + encoding.distortion) / math.log(2)
    counts = test.extras["lengths"].double()
    residuals = terms - terms.sum() / counts.sum() * counts
    error = residuals.std().item() / math.sqrt(len(counts)) / counts.mean().item()
    assert numbers["neg_elbo_bpd_se"] == pytest.approx(error)
    both = json.loads(call("evaluate", "run", "--particles", 2, "--images", 3, "--json")[1])
    assert both["iw_neg_elbo_bpd"] == pytest.approx(both["neg_elbo_bpd"])

    found = pyro_delta.check(run, images=8, told_images=8, told_samples=4).numbers
    assert found["floor_holds"] is True
    assert found["delta_guarantee"] == "every datum, by its length"

    for arguments, sentence in (
        (("sample", "run", "--num", 1, "--out", "x.png"), "'x.png' is not a .txt file"),
        (("encode", "run", "long.txt", "--out", "y.nc"), "has a document of"),
        (("encode", "run", "none.txt", "--out", "y.nc"), "cannot read none.txt"),
    ):
        Path("long.txt").write_text("the cat " * 400)
        code, _, err = call(*arguments)
        assert code == 2, (arguments, err)
        assert sentence in err


def test_both_backends_agree_on_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("\n".join(sentences_of(80)))
    assert call("train", "--dataset", "text:x.txt", *SMALL, "--steps", 2, "--out", "run")[0] == 0
    code, out, err = call("crosscheck", "run", "--images", 2, "--float64", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["agrees"] is True
    assert max(term["difference"] for term in found["terms"]) < 1e-9
    for backend in ("pyro", "numpyro"):
        assert call("sample", "run", "--num", 2, "--backend", backend, "--out", f"{backend}.txt")[0] == 0
    assert Path("pyro.txt").read_bytes() == Path("numpyro.txt").read_bytes()


def test_both_backends_start_from_what_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Posterior means of training data have mean 0 and deviation 1 over the steps within their lengths."""
    pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("\n".join(sentences_of(80)))
    for backend in ("pyro", "numpyro"):
        still = ["--set", "training.lr=1e-30", "--backend", backend, "--steps", 1, "--out", backend]
        assert call("train", "--dataset", "text:x.txt", *SMALL, *still)[0] == 0
        run = pyro_delta.load(backend)
        train = run.data().train
        lengths = train.extras["lengths"]
        tried = extras_of(run)  # what `verify` of a run tries it with
        assert tried is not None
        assert {int(lengths.min()), int(lengths.max())} <= set(tried["lengths"].tolist())
        with torch.no_grad():
            mean = run.vae.guide.posterior(train.x, lengths).mean[torch.arange(run.spec.length) < lengths[:, None]]
        torch.testing.assert_close(mean.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(mean.std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    Path("x.txt").unlink()
    assert extras_of(run) is None


def test_bounds_do_not_depend_on_the_order_of_lengths() -> None:
    """Data are looked at from the shortest to the longest, and found in their own order."""
    spec = TextSpec(30, 256)
    prior = AR1Prior(spec, dims=1, alpha=0.5)
    from pyro_delta.guides import TransformerGuide
    from pyro_delta.models import DeltaVAE
    from pyro_delta.vae import VAE

    torch.manual_seed(0)
    model = DeltaVAE(prior, TransformerLikelihood(spec, prior, hidden=8, layers=1, heads=2, use_latents=False))
    vae = VAE(model, TransformerGuide(spec, prior, hidden=8, layers=1, heads=2)).eval()
    split = documents(spec, [text[:20] for text in sentences_of(30)])
    one = [encode(vae, split.take(slice(i, i + 1))) for i in range(30)]
    together = encode(vae, split, batch=7)
    torch.testing.assert_close(together.distortion, torch.cat([each.distortion for each in one]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.rate, torch.cat([each.rate for each in one]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.mean["z"], torch.cat([each.mean["z"] for each in one]), rtol=1e-4, atol=1e-5)
    short = evaluate(vae, documents(spec, ["ab", "cd", "ef"]))  # all of one length, which is not that of the model
    assert short["delta_nats"] == pytest.approx(ar1_committed_rate(0.5, 3).item(), rel=1e-12)
    assert one[0].delta is not None
    assert one[0].delta.item() == ar1_committed_rate(0.5, int(split.extras["lengths"][0])).item()
