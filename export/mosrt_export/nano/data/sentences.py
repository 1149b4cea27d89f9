"""Sentences: varied text for the synthetic voices, from small grammars, in several languages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

__all__ = ["LANGUAGES", "sentences"]

# Each language: alternatives for the parts of a sentence, which combine freely.
_GRAMMARS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "en": (
        (
            "The old captain",
            "My younger sister",
            "A patient teacher",
            "The whole committee",
            "Every third visitor",
            "Somebody in the kitchen",
            "The quiet engineer",
            "Her neighbour",
            "One of the judges",
            "The night watchman",
            "A group of students",
            "Our best pianist",
        ),
        (
            "carefully measured",
            "never mentioned",
            "finally repaired",
            "walked slowly past",
            "was thinking about",
            "wanted to photograph",
            "had almost forgotten",
            "described at length",
            "quickly exchanged",
            "refused to sell",
            "could hardly believe",
            "jumped over",
        ),
        (
            "the frozen river",
            "a box of purple crayons",
            "seven very large umbrellas",
            "the church clock",
            "those thick, dusty books",
            "the shape of the vowel",
            "fresh orange juice",
            "this enormous zigzag",
            "the measure of pleasure",
            "a cheap wooden chair",
            "the judge's yellow jacket",
            "thirty-three thousand feathers",
        ),
        (
            "before the sun came up.",
            "although it was raining.",
            "without saying a word.",
            "and nobody seemed surprised!",
            "in the middle of August.",
            "but why should that matter?",
            "while the others were asleep.",
            "at a quarter past eight.",
            "because the path was shorter.",
            "on the far side of the valley.",
            "as if it were the usual thing.",
            "just for the joy of it.",
        ),
    ),
    "de": (
        (
            "Der alte Müller",
            "Meine jüngere Schwester",
            "Ein fröhlicher Zeuge",
            "Das ganze Orchester",
        ),
        ("beschreibt ausführlich", "repariert am Dienstag", "vergisst beinahe", "kauft ungern"),
        (
            "die hölzerne Brücke",
            "zwölf große Schirme",
            "das Fenster zum Hof",
            "den süßen Apfelkuchen",
        ),
        (
            "bevor es dunkel wird.",
            "obwohl niemand zuhört.",
            "ohne ein einziges Wort.",
            "im schönen Juni.",
        ),
    ),
    "fr": (
        ("Le vieux capitaine", "Ma petite sœur", "Un grand musicien", "La voisine du troisième"),
        ("regarde longuement", "oublie toujours", "répare soigneusement", "achète volontiers"),
        (
            "la fenêtre ouverte",
            "une douzaine d'œufs",
            "le chemin de la gare",
            "ces beaux fruits rouges",
        ),
        (
            "avant le lever du jour.",
            "sans dire un mot.",
            "au milieu du mois d'août.",
            "malgré la pluie.",
        ),
    ),
    "es": (
        ("El viejo capitán", "Mi hermana menor", "Un joven ingeniero", "Toda la familia"),
        ("describe despacio", "nunca recuerda", "arregla con cuidado", "compra todos los jueves"),
        (
            "la ventana del patio",
            "doce naranjas dulces",
            "el camino del bosque",
            "un libro muy grueso",
        ),
        (
            "antes de que llueva.",
            "sin decir nada.",
            "en pleno mes de agosto.",
            "aunque nadie escuche.",
        ),
    ),
    "it": (
        ("Il vecchio capitano", "Mia sorella minore", "Un giovane ingegnere", "Tutta la famiglia"),
        ("descrive lentamente", "non ricorda mai", "ripara con cura", "compra ogni giovedì"),
        (
            "la finestra del cortile",
            "dodici arance dolci",
            "la strada del bosco",
            "un libro molto grosso",
        ),
        ("prima che faccia buio.", "senza dire una parola.", "in pieno agosto.", "anche se piove."),
    ),
    "cs": (
        ("Starý kapitán", "Moje mladší sestra", "Mladý inženýr", "Celá rodina"),
        ("pomalu popisuje", "často zapomíná", "pečlivě opravuje", "každý čtvrtek kupuje"),
        ("okno do dvora", "dvanáct sladkých jablek", "cestu přes les", "velmi tlustou knihu"),
        ("než přijde večer.", "aniž by řekl slovo.", "uprostřed srpna.", "i když prší."),
    ),
    "fi": (
        ("Vanha kapteeni", "Nuorempi siskoni", "Nuori insinööri", "Koko perhe"),
        ("kuvailee hitaasti", "muistaa harvoin", "korjaa huolellisesti", "ostaa torstaisin"),
        (
            "pihan puolen ikkunaa",
            "makeita appelsiineja",
            "metsän läpi kulkevaa tietä",
            "paksua kirjaa",
        ),
        ("ennen kuin tulee ilta.", "sanomatta sanaakaan.", "keskellä elokuuta.", "vaikka sataa."),
    ),
    "ca": (
        ("El vell capità", "La meva germana petita", "Un jove enginyer", "Tota la família"),
        ("descriu a poc a poc", "no recorda mai", "arregla amb cura", "compra cada dijous"),
        (
            "la finestra del pati",
            "dotze taronges dolces",
            "el camí del bosc",
            "un llibre molt gruixut",
        ),
        ("abans que es faci fosc.", "sense dir res.", "al mig de l'agost.", "encara que plogui."),
    ),
    "ru": (
        ("Старый капитан", "Моя младшая сестра", "Молодой инженер", "Вся семья"),
        ("медленно описывает", "часто забывает", "осторожно чинит", "каждый четверг покупает"),
        ("окно во двор", "двенадцать сладких яблок", "дорогу через лес", "очень толстую книгу"),
        ("пока не стемнело.", "не говоря ни слова.", "в середине августа.", "хотя идёт дождь."),
    ),
    "pt": (
        ("O velho capitão", "A minha irmã mais nova", "Um jovem engenheiro", "Toda a família"),
        ("descreve devagar", "nunca se lembra de", "conserta com cuidado", "compra às quintas"),
        (
            "a janela do pátio",
            "doze laranjas doces",
            "o caminho da floresta",
            "um livro muito grosso",
        ),
        ("antes de anoitecer.", "sem dizer nada.", "em pleno agosto.", "mesmo quando chove."),
    ),
    "pl": (
        ("Stary kapitan", "Moja młodsza siostra", "Młody inżynier", "Cała rodzina"),
        ("powoli opisuje", "często zapomina", "starannie naprawia", "w czwartki kupuje"),
        (
            "okno na podwórze",
            "dwanaście słodkich jabłek",
            "drogę przez las",
            "bardzo grubą książkę",
        ),
        (
            "zanim zapadnie zmrok.",
            "nie mówiąc ani słowa.",
            "w środku sierpnia.",
            "chociaż pada deszcz.",
        ),
    ),
}

LANGUAGES: Final = tuple(_GRAMMARS)


def sentences(language: str, count: int, rng: np.random.Generator) -> list[str]:
    """Random sentences.

    Args:
        language: One of `LANGUAGES`.
        count: How many.
        rng: Source of the choices.
    """
    parts = _GRAMMARS[language]
    return [" ".join(str(rng.choice(part)) for part in parts) for _ in range(count)]
