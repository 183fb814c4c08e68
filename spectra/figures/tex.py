"""Words as LaTeX: what stands in a PGF picture must compile in any pdflatex document."""

from __future__ import annotations

import itertools
import unicodedata

GLYPH_MACRO = r"\spectraglyph"
"""Takes a letter that pdflatex has no font for; see `DEFINITIONS`."""
DEFINITIONS = (
    # LuaLaTeX and XeLaTeX draw the letter itself, from whatever font the document chose.
    rf"\def{GLYPH_MACRO}#1{{\ifdefined\pdftexversion ?\else #1\fi}}"
)

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # In groups: pairs of these would join to dashes and quotes, and babel may make them active.
    "-": "{-}",
    "'": "{'}",
    "`": "{`}",
    '"': r"{\char34}",
    "–": "{--}",
    "—": "{---}",
    "…": r"\ldots{}",
    "\N{NO-BREAK SPACE}": "~",
    "ß": r"{\ss}",
    "æ": r"{\ae}",
    "Æ": r"{\AE}",
    "œ": r"{\oe}",
    "Œ": r"{\OE}",
    "ø": r"{\o}",
    "Ø": r"{\O}",
    "ł": r"{\l}",
    "Ł": r"{\L}",
    "ı": r"{\i}",
}
_GREEK = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon",
    "ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "ι": r"\iota", "κ": r"\kappa",
    "λ": r"\lambda", "μ": r"\mu", "ν": r"\nu", "ξ": r"\xi", "ο": "o", "π": r"\pi",
    "ρ": r"\rho", "ς": r"\varsigma", "σ": r"\sigma", "τ": r"\tau", "υ": r"\upsilon",
    "φ": r"\varphi", "χ": r"\chi", "ψ": r"\psi", "ω": r"\omega",
    "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda", "Ξ": r"\Xi",
    "Π": r"\Pi", "Σ": r"\Sigma", "Υ": r"\Upsilon", "Φ": r"\Phi", "Ψ": r"\Psi",
    "Ω": r"\Omega", "\N{MICRO SIGN}": r"\mu",
    **{
        greek: rf"\mathrm{{{latin}}}"
        for greek, latin in zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True)
    },
}  # fmt: skip
_MATHS = {
    **_GREEK,
    "−": "-", "±": r"\pm", "×": r"\times", "·": r"\cdot", "÷": r"\div", "∘": r"\circ",
    "≈": r"\approx", "≠": r"\neq", "≤": r"\leq", "≥": r"\geq", "≪": r"\ll", "≫": r"\gg",
    "∼": r"\sim", "∝": r"\propto", "∞": r"\infty", "√": r"\surd", "∂": r"\partial",
    "∈": r"\in", "∑": r"\sum", "∏": r"\prod", "→": r"\rightarrow", "←": r"\leftarrow",
    "↔": r"\leftrightarrow", "‖": r"\Vert", "∥": r"\Vert", "⟨": r"\langle", "⟩": r"\rangle",
    "′": "'", "″": "''", "°": r"^{\circ}", "⊥": r"\perp", "⊤": r"\top",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d",
    "\u0327": "c", "\u0331": "b",
}  # fmt: skip


def escape(text: str) -> str:
    r"""Return `text` as LaTeX that prints it: no character of it is a command.

    Parameters
    ----------
    text : str
        Anything, for example the name of a run.

    Returns
    -------
    str
        ASCII, but for what stands within `GLYPH_MACRO`: letters that pdflatex has no font for,
        printed as ``?`` there. Greek letters, sub- and superscripts are mathematics. Control
        characters are gone.

    Examples
    --------
    >>> escape("σₚ of run_1")
    '\\ensuremath{\\sigma_{\\mathrm{p}}} of run\\_1'
    """
    parts = []
    for mathematical, letters in itertools.groupby(text, key=_is_maths):
        part = "".join(letters)
        parts.append(rf"\ensuremath{{{_maths(part)}}}" if mathematical else _words(part))
    return "".join(parts)


def _is_maths(letter: str) -> bool:
    return letter in _MATHS or _script(letter) is not None


def _maths(text: str) -> str:
    parts = []
    for sign, letters in itertools.groupby(text, key=lambda c: (_script(c) or ("",))[0]):
        if sign:
            inner = "".join((_script(c) or ("", ""))[1] for c in letters)
            parts.append(f"{sign}{{{inner}}}")
        else:
            # A brace keeps a command apart from the letter that follows.
            parts.append(
                "".join(f"{{{_MATHS[c]}}}" if len(text) > 1 else _MATHS[c] for c in letters)
            )
    return "".join(parts)


def _script(letter: str) -> tuple[str, str] | None:
    """Return ``"_"`` or ``"^"`` and what stands there, for a sub- or superscript."""
    kind, _, plain = unicodedata.decomposition(letter).partition(" ")
    if kind not in ("<sub>", "<super>") or " " in plain:
        return None
    below = chr(int(plain, 16))
    if below == "\N{MINUS SIGN}":
        inner = "-"
    elif below in _GREEK:
        inner = _GREEK[below]
    elif below.isascii() and (below.isalnum() or below in "+=()"):
        inner = rf"\mathrm{{{below}}}" if below.isalpha() else below
    else:
        return None
    return ("_" if kind == "<sub>" else "^"), inner


def _words(text: str) -> str:
    return "".join(map(_word_letter, text))


def _word_letter(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    if letter.isascii():
        return letter if letter.isprintable() else ""
    if letter.isspace():
        return " "
    plain = unicodedata.normalize("NFD", letter)
    if len(plain) == 2 and plain[0].isascii() and plain[1] in _ACCENTS:
        return rf"\{_ACCENTS[plain[1]]}{{{plain[0]}}}"
    if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Mn", "Me"):
        return ""
    return rf"{GLYPH_MACRO}{{{letter}}}"
