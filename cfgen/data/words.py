"""Words for the two sexes in the languages that tables of participants are written in.

Letters are not among them: M is male in English, and mujer, a woman, in Spanish.
"""

from __future__ import annotations

import re
import unicodedata

_MALE = """
male males masc man men boy boys masculine gentleman
hombre hombres varon varones masculino masculinos nino ninos macho
homme hommes masculin masculins garcon garcons
mann manner mannlich maskulin herr junge jungen
uomo uomini maschio maschi maschile
homem homens menino
mannen mannelijk jongen jongens
mand maend mandlig mannlig pojke
mezczyzna mezczyzni meski muz muzi mies miehet erkek ferfi barbat barbati muskarac muski
мужчина мужчины мужской муж чоловік чоловіча αντρας ανδρας αρρεν
laki pria
男 男性 男子 남 남성 남자 ذكر זכר
"""
_FEMALE = """
female females fem woman women girl girls feminine lady
mujer mujeres femenino femenina hembra hembras nina ninas
femme femmes feminin feminins fille filles femelle
frau frauen weiblich weiblich feminin madchen
donna donne femmina femmine femminile
mulher mulheres feminino feminina menina
vrouw vrouwen vrouwelijk meisje meisjes
kvinde kvinder kvinne kvinner kvinna kvinnor kvindelig kvinnelig kvinnlig flicka
kobieta kobiety zenski zena zeny nainen naiset kadin femeie femei zensko
женщина женщины женский жен жінка жіноча γυναικα θηλυ
perempuan wanita dona
女 女性 女子 여 여성 여자 أنثى נקבה
"""


def fold(text: str) -> str:
    """Small letters without accents: 'Männlich' -> 'mannlich'."""
    apart = unicodedata.normalize("NFKD", text.casefold().replace("ł", "l").replace("ı", "i"))
    return "".join(c for c in apart if not unicodedata.combining(c))


_SEXES = {fold(word): "M" for word in _MALE.split()}
_SEXES |= {fold(word): "F" for word in _FEMALE.split()}


def sex_of_word(word: str) -> str:
    """'M' or 'F' of one word in any language, '' when it is none: 'Mujer' -> 'F'."""
    return _SEXES.get(fold(word.strip()), "")


def sex_in_words(text: str) -> str:
    """'M' or 'F' that a description speaks of, '' when it names none or both.

    >>> sex_in_words("male participant"), sex_in_words("Mujer"), sex_in_words("male or female")
    ('M', 'F', '')
    """
    if text.strip().upper() in ("M", "F"):
        return text.strip().upper()
    sexes = {sex_of_word(word) for word in re.findall(r"[^\W\d_]+", fold(text))} - {""}
    return sexes.pop() if len(sexes) == 1 else ""


def codes_in_words(text: str) -> dict[str, str]:
    """Codes that a sentence explains: 'sex (1 = male, 2: female)' -> {'1': 'male', '2': 'female'}.

    >>> codes_in_words("male=1, female=2")
    {'1': 'male', '2': 'female'}
    """
    pairs = re.findall(r"(\w+)\s*(?:==?|:|->|→)\s*(\w+)", text)
    known = {code: word for code, word in pairs if sex_in_words(word)}
    return known or {code: word for word, code in pairs if sex_in_words(word)}
