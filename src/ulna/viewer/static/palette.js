// The colour of every value of an overlay: that of the class that is drawn last among those that it stands for and are on.

export const css = ([red, green, blue]) => `rgb(${red}, ${green}, ${blue})`;

export function colourOf(colours, number) {
  return colours[number % colours.length];
}

// values: for every value the classes that it stands for; visible: the classes that are on -> [red, green, blue] or null
export function palette(view, colours, visible) {
  return view.values.map((classes, value) => {
    const last = classes.filter((number) => visible.has(number)).pop();
    if (last === undefined) return null;
    return colourOf(colours, view.objects ? value - 1 : last);
  });
}
