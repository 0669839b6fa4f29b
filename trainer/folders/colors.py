"""Colors of all figures, distinguishable with color blindness (Okabe and Ito 2008)."""

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
