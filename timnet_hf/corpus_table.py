# SPDX-License-Identifier: Apache-2.0
"""The six corpora of the TIM-Net paper as one declarative table.

A row says everything that differs between the corpora: how the owners' file names are read, which
classes and how many files to expect, under which terms and from whom the recordings come. The code
that uses the table (`timnet_hf.corpora`, `timnet_hf.protocols`, `timnet_hf.corpus_download`) knows
no corpus by name.

Counts are those of the published corpora; seeds and the choice of classes are those of the TIM-Net
authors (arXiv 2211.08233). The public EmoBox folds (Ma et al., Interspeech 2024,
https://github.com/emo-box/EmoBox) lie in ``data/emobox_folds.json`` for five corpora, where they
name every recording and so serve as the list that a copy is checked against. Those of the sixth,
IEMOCAP, are its five sessions.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

__all__ = ["CORPORA", "Corpus", "CorpusError", "Download", "Utterance", "find_corpus"]


class CorpusError(ValueError):
    """A corpus or a folder of recordings cannot be used as it is; the message says why."""


@dataclass(frozen=True)
class Utterance:
    """One recording as its place in the corpus describes it.

    Attributes:
        name: The corpus' own name of the recording, without the folders it was put into.
        path: Where the file lies.
        label: Class, or None while an annotation file has yet to tell it.
        speaker: Speaker, by the owners' name.
        sentence: What is spoken, by the owners' code; None where the name does not tell.
        order: The file name that places the recording within its class.
        emobox: The public EmoBox fold that tests on it, where the name tells.
    """

    name: str
    path: str
    label: str | None
    speaker: str
    sentence: str | None
    order: str
    emobox: str | None = None


@dataclass(frozen=True)
class Download:
    """An archive that the owners publish.

    Attributes:
        url: Where the zip file lies.
        checksum: ``algorithm:hex digest`` of the zip file, or None where none is published.
        max_bytes: What the archive may hold unpacked, in bytes; more is refused as a zip bomb.
        max_files: How many members the archive may have.
    """

    url: str
    checksum: str | None = None
    max_bytes: int = 2 * 1024**3
    max_files: int = 20_000


@dataclass(frozen=True)
class Corpus:
    r"""One corpus: how to read it, what to expect, and whom to thank.

    Attributes:
        name: Short name, as the command line takes it.
        title: Name as the owners write it.
        language: Spoken language.
        layout: The owners' layout, for people.
        pattern: Regular expression on the end of a path (``/``-separated, case ignored). Its named
            groups fill the formats below; ``emotion`` is looked up in ``codes``.
        repacked: The same for names that copies are often repacked under.
        codes: Emotion code (lower case) to class.
        name_format: The corpus' own name of a recording.
        speaker_format: The speaker.
        sentence_format: The sentence, or None where file names do not tell it.
        order_format: The file name that orders recordings within a class; None: ``name_format``.
        emobox_format: The public EmoBox fold that tests on a recording, where its name tells.
        left_out: Regular expression on paths of audio that belongs to the corpus, but not to the
            task (song, other emotions): neither read nor reported.
        annotations: Regular expression on paths of text files that hold the emotions, where file
            names do not.
        annotation: Regular expression with the groups ``name`` and ``emotion``, one match for each
            recording in such a file.
        class_counts: Recordings of each class, in alphabetical order of the classes.
        n_speakers: Speakers.
        speakers_vary: The owners' folders name the speakers, and copies spell them differently.
        seed: ``random_state`` of the authors' 10-fold split.
        licence: Terms, in short.
        citation: What to cite.
        homepage: Where the owners are found.
        obtain: Where to ask, when there is no download.
        download: The published archive, where everybody may fetch it.
        checksum: `timnet_hf.corpora.dataset_checksum` of the published files, where known. It is
            what ``sha256sum * | sha256sum`` prints in the folder of the recordings.
        note: What a reader of results should know.
    """

    name: str
    title: str
    language: str
    layout: str
    pattern: str
    codes: Mapping[str, str]
    name_format: str
    class_counts: Mapping[str, int]
    n_speakers: int
    seed: int
    licence: str
    citation: str
    homepage: str
    obtain: str
    speaker_format: str = "{speaker}"
    sentence_format: str | None = "{sentence}"
    order_format: str | None = None
    repacked: str | None = None
    emobox_format: str | None = None
    left_out: str | None = None
    annotations: str | None = None
    annotation: str | None = None
    speakers_vary: bool = False
    download: Download | None = None
    checksum: str | None = None
    note: str = ""
    labels: tuple[str, ...] = field(init=False)
    """The classes, alphabetical."""
    n_files: int = field(init=False)
    """Recordings of the whole corpus."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(sorted(self.class_counts)))
        object.__setattr__(self, "n_files", sum(self.class_counts.values()))

    def parse(self, path: str) -> Utterance | None:
        """Read a recording's description from where it lies.

        Args:
            path: ``/``-separated path, as deep as the owners' layout at least.

        Returns:
            The description, or None for a file that is not a recording of this corpus.

        Example:
            >>> from timnet_hf.corpora import CORPORA
            >>> recording = CORPORA["emodb"].parse("anywhere/wav/03a01Fa.wav")
            >>> recording.label, recording.speaker, recording.sentence
            ('happy', '03', 'a01')
        """
        match = _compile(self.pattern).search(path)
        if match is None and self.repacked is not None:
            match = _compile(self.repacked).search(path)
        if match is None:
            return None
        groups = match.groupdict(default="")
        label = None
        if "emotion" in groups:
            label = self.codes[groups["emotion"].lower()]
        sentence = self.sentence_format and self.sentence_format.format(**groups)
        return Utterance(
            name=self.name_format.format(**groups),
            path=path,
            label=label,
            speaker=self.speaker_format.format(**groups),
            sentence=sentence,
            order=(self.order_format or self.name_format).format(**groups),
            emobox=self.emobox_format and self.emobox_format.format(**groups),
        )

    def leaves_out(self, path: str) -> bool:
        """Whether a file belongs to the corpus, but not to the task."""
        return self.left_out is not None and bool(_compile(self.left_out).search(path))

    def is_annotation(self, path: str) -> bool:
        """Whether a file holds the emotions of recordings."""
        return self.annotations is not None and bool(_compile(self.annotations).search(path))

    def emobox_folds(self) -> dict[str, tuple[str, ...]]:
        """The public EmoBox test folds: fold to names of recordings; empty without a list."""
        return {fold: tuple(names.split()) for fold, names in _emobox().get(self.name, {}).items()}


def find_corpus(name: str) -> Corpus:
    """Look a corpus up, however its name is written ("EMO-DB", "emodb").

    Raises:
        CorpusError: There is no corpus of that name.
    """
    key = re.sub(r"[^a-z0-9]", "", str(name).lower())
    if key in CORPORA:
        return CORPORA[key]
    close = difflib.get_close_matches(key, CORPORA, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise CorpusError(f"unknown corpus {name!r}; known are {', '.join(CORPORA)}.{hint}")


@functools.cache
def _compile(pattern: str) -> re.Pattern[str]:
    """Patterns speak of the end of a path, which a folder boundary precedes."""
    return re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)


@functools.cache
def _emobox() -> dict[str, dict[str, str]]:
    text = resources.files("timnet_hf").joinpath("data/emobox_folds.json").read_text("utf-8")
    folds: dict[str, dict[str, str]] = json.loads(text)["folds"]
    return folds


# Copies are often repacked losslessly, so FLAC is as good as WAV.
_AUDIO = r"\.(?:wav|flac)"

_ROWS = (
    Corpus(
        name="casia",
        title="CASIA",
        language="Chinese",
        layout="<speaker>/<emotion>/201.wav … 250.wav",
        pattern=r"(?P<speaker>[^/]+)/(?P<emotion>angry|fear|happy|neutral|sad|surprise)"
        r"/(?P<sentence>2(?:0[1-9]|[1-4]\d|50))" + _AUDIO,
        codes={e: e for e in ("angry", "fear", "happy", "neutral", "sad", "surprise")},
        name_format="{speaker}/{emotion}/{sentence}",
        order_format="{sentence}-{emotion}-{speaker}",
        repacked=r"(?P<sentence>2(?:0[1-9]|[1-4]\d|50))"
        r"-(?P<emotion>angry|fear|happy|neutral|sad|surprise)-(?P<speaker>[^/-]+)" + _AUDIO,
        left_out=r"[^/]+/(?:angry|fear|happy|neutral|sad|surprise)/\d+" + _AUDIO,
        class_counts=dict.fromkeys(("angry", "fear", "happy", "neutral", "sad", "surprise"), 200),
        n_speakers=4,
        speakers_vary=True,
        seed=32,
        licence="owners' permission needed",
        citation="J. Tao, F. Liu, M. Zhang, H. Jia: Design of speech corpus for Mandarin text to "
        "speech. Blizzard Challenge Workshop, 2008.",
        homepage="http://www.chineseldc.org",
        obtain="Order it from the Chinese Linguistic Data Consortium, http://www.chineseldc.org.",
        note="The usual subset: sentences 201 to 250, which all speakers say in all emotions.",
    ),
    Corpus(
        name="emodb",
        title="EMO-DB",
        language="German",
        layout="wav/03a01Fa.wav",
        pattern=r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])(?P<version>[a-z]?)"
        + _AUDIO,
        codes={
            "w": "angry",
            "l": "boredom",
            "e": "disgust",
            "a": "fear",
            "f": "happy",
            "n": "neutral",
            "t": "sad",
        },
        name_format="{speaker}{sentence}{emotion}{version}",
        class_counts=dict(angry=127, boredom=81, disgust=46, fear=69, happy=71, neutral=79, sad=62),
        n_speakers=10,
        seed=46,
        licence="free to download; no clear licence text by the owners",
        citation="F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier, B. Weiss: A Database of "
        "German Emotional Speech. Interspeech 2005.",
        homepage="http://emodb.bilderbar.info",
        obtain="Download it from http://emodb.bilderbar.info.",
        download=Download("http://emodb.bilderbar.info/download/download.zip"),
        checksum="584ee8b74109ed90cbde079a5997d4299859327b106933933dd0881670cd2fcf",
        note="EmoBox's folds of this corpus mix speakers.",
    ),
    Corpus(
        name="emovo",
        title="EMOVO",
        language="Italian",
        layout="f1/dis-f1-b1.wav",
        pattern=r"(?P<emotion>dis|gio|neu|pau|rab|sor|tri)-(?P<speaker>[fm][123])"
        r"-(?P<sentence>[bdln]\d)" + _AUDIO,
        codes={
            "dis": "disgust",
            "gio": "happy",
            "neu": "neutral",
            "pau": "fear",
            "rab": "angry",
            "sor": "surprise",
            "tri": "sad",
        },
        name_format="{emotion}-{speaker}-{sentence}",
        class_counts=dict.fromkeys(
            ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"), 84
        ),
        n_speakers=6,
        seed=1,
        licence="no clear licence text by the owners",
        citation="G. Costantini, I. Iaderola, A. Paoloni, M. Todisco: EMOVO Corpus: an Italian "
        "Emotional Speech Database. LREC 2014.",
        homepage="http://voice.fub.it/activities/corpora/emovo",
        obtain="Ask its authors (Fondazione Ugo Bordoni, Rome; LREC 2014 paper) for a copy.",
    ),
    Corpus(
        name="iemocap",
        title="IEMOCAP",
        language="English",
        layout="SessionN/sentences/wav/<dialog>/<utterance>.wav, emotions in "
        "SessionN/dialog/EmoEvaluation/*.txt",
        pattern=r"Session\d/sentences/wav/[^/]+/"
        r"(?P<utterance>Ses(?P<session>\d\d)[FM]_\w+_(?P<gender>[FM])[A-Z]*\d+)" + _AUDIO,
        codes={"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"},
        name_format="{utterance}",
        speaker_format="Ses{session}{gender}",
        sentence_format=None,
        emobox_format="{session}",
        left_out=r"Session\d/(?:dialog/|sentences/(?!wav/)).*",
        annotations=r"Session\d/dialog/EmoEvaluation/[^/]+\.txt",
        annotation=r"(?m)^\[[^\]\n]*\]\s+(?P<name>Ses\w+)\s+(?P<emotion>\w+)\s",
        class_counts=dict(angry=1103, happy=1636, neutral=1708, sad=1084),
        n_speakers=10,
        seed=16,
        licence="owners' permission needed",
        citation="C. Busso, M. Bulut, C.-C. Lee, A. Kazemzadeh, E. Mower, S. Kim, J. Chang, "
        "S. Lee, S. Narayanan: IEMOCAP: Interactive emotional dyadic motion capture database. "
        "Language Resources and Evaluation 42(4), 2008.",
        homepage="https://sail.usc.edu/iemocap",
        obtain="Fill in the release form at https://sail.usc.edu/iemocap.",
        note="Four classes, excited counted as happy; the other emotions are left out.",
    ),
    Corpus(
        name="ravdess",
        title="RAVDESS",
        language="English",
        layout="Actor_NN/03-01-EE-II-SS-RR-AA.wav",
        pattern=r"Actor_\d\d/03-01-(?P<emotion>0[1-8])-(?P<intensity>0[12])-(?P<sentence>0[12])"
        r"-(?P<repetition>0[12])-(?P<speaker>\d\d)" + _AUDIO,
        codes={
            "01": "neutral",
            "02": "calm",
            "03": "happy",
            "04": "sad",
            "05": "angry",
            "06": "fear",
            "07": "disgust",
            "08": "surprise",
        },
        name_format="03-01-{emotion}-{intensity}-{sentence}-{repetition}-{speaker}",
        # Video and song, which the owners publish beside the speech.
        left_out=r"Actor_\d\d/(?!03-01-)0[123]-0[12]-0[1-8](?:-0[12]){3}-\d\d\.\w+",
        class_counts=dict(
            angry=192, calm=192, disgust=192, fear=192, happy=192, neutral=96, sad=192, surprise=192
        ),
        n_speakers=24,
        seed=46,
        licence="CC BY-NC-SA 4.0",
        citation="S. R. Livingstone, F. A. Russo: The Ryerson Audio-Visual Database of Emotional "
        "Speech and Song (RAVDESS). PLoS ONE 13(5): e0196391, 2018.",
        homepage="https://zenodo.org/records/1188976",
        obtain="Download Audio_Speech_Actors_01-24.zip from https://zenodo.org/records/1188976.",
        download=Download(
            "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip?download=1",
            checksum="md5:bc696df654c87fed845eb13823edef8a",
        ),
        note="Speech only. Actor 07 has one recording published under two names.",
    ),
    Corpus(
        name="savee",
        title="SAVEE",
        language="English",
        layout="ALL/DC_a01.wav or AudioData/DC/a01.wav",
        pattern=r"(?P<speaker>DC|JE|JK|KL)[_/](?P<emotion>sa|su|[adfhn])(?P<number>\d\d)" + _AUDIO,
        codes={
            "a": "angry",
            "d": "disgust",
            "f": "fear",
            "h": "happy",
            "n": "neutral",
            "sa": "sad",
            "su": "surprise",
        },
        name_format="{speaker}_{emotion}{number}",
        sentence_format="{emotion}{number}",
        class_counts=dict(
            angry=60, disgust=60, fear=60, happy=60, neutral=120, sad=60, surprise=60
        ),
        n_speakers=4,
        seed=44,
        licence="owners' permission needed",
        citation="S. Haq, P. J. B. Jackson: Speaker-dependent audio-visual emotion recognition. "
        "AVSP 2009.",
        homepage="http://kahlan.eps.surrey.ac.uk/savee",
        obtain="Register at http://kahlan.eps.surrey.ac.uk/savee.",
        note="Numbers count anew in every emotion, so a sentence is emotion and number. Some texts "
        "occur in several emotions and names do not tell which: loto is not text-independent.",
    ),
)

CORPORA: dict[str, Corpus] = {corpus.name: corpus for corpus in _ROWS}
"""The corpora by short name."""
