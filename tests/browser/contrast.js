// Return every text on the page whose contrast with its background is below level AA of WCAG:
// 4.5 to 1, or 3 to 1 for large text. Colours are drawn on a canvas, because they may be
// transparent or relative to other colours.
() => {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const draw = (colours) => {
    pixel.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      pixel.fillStyle = colour;
      pixel.fillRect(0, 0, 1, 1);
    }
    return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ancestors = (element) => (element ? [...ancestors(element.parentElement), element] : []);
  const contrast = (element) => {
    const backgrounds = ancestors(element).map((parent) => getComputedStyle(parent).backgroundColor);
    const [dark, light] = [backgrounds, [...backgrounds, getComputedStyle(element).color]]
      .map((colours) => luminance(draw(colours))).sort((left, right) => left - right);
    return (light + 0.05) / (dark + 0.05);
  };
  const required = ({ fontSize, fontWeight }) => {
    const size = parseFloat(fontSize);
    return size >= 24 || (size >= 18.66 && Number(fontWeight) >= 700) ? 3 : 4.5;
  };
  const hasText = (element) => element.matches("input, textarea") ||
    [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const texts = [...document.body.querySelectorAll("*")]
    .filter((element) => hasText(element) && element.checkVisibility());
  if (texts.length < 10) return ["expected more text on the page"];
  return texts
    .filter((element) => contrast(element) < required(getComputedStyle(element)))
    .map((element) => `${element.tagName} ${element.textContent.trim()}: ${contrast(element).toFixed(2)}`);
}
