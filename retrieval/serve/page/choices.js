/** What was chosen for each group of duplicates: which files move away. Kept in this browser until it is applied. */

const KEY = "seenit.choices";

export class Choices {
  /** @param {string} run  id of the run that found the groups; choices of another run mean nothing */
  constructor(run) {
    this.run = run;
    this.groups = new Map(); // number -> {move: [{file, bytes}]}; a group that is not there is undecided
    try {
      const kept = JSON.parse(localStorage.getItem(KEY) ?? "null");
      if (kept?.run === run) this.groups = new Map(kept.groups);
    } catch {
      // a list that cannot be read is no list
    }
  }

  /** The files of a group that move: as chosen, else as suggested. */
  moves(group) {
    return new Set((this.groups.get(group.group)?.move ?? suggested(group)).map((file) => file.file));
  }

  decided(group) {
    return this.groups.has(group.group);
  }

  /** Move what is suggested. */
  accept(group) {
    this.set(group, suggested(group));
  }

  /** The same for every group of a list that is undecided and has something to move. */
  acceptAll(groups) {
    for (const group of groups) {
      const files = suggested(group);
      if (files.length && !this.decided(group)) this.groups.set(group.group, choiceOf(files));
    }
    this.save();
  }

  keepAll(group) {
    this.set(group, []);
  }

  undecide(group) {
    this.groups.delete(group.group);
    this.save();
  }

  /**
   * Move a file, or keep it. One file that could be spared always stays beside what cannot.
   * @returns {string} why not; empty where it is done
   */
  toggle(group, file) {
    if (file.spare === false) return file.why_not || "this file stays";
    const moves = this.moves(group);
    if (!moves.delete(file.file)) moves.add(file.file);
    const free = [group.keeper, ...group.members.filter((member) => member.spare)];
    if (free.every((one) => moves.has(one.file))) return "one of them has to stay";
    this.set(group, free.filter((one) => moves.has(one.file)));
    return "";
  }

  set(group, files) {
    this.groups.set(group.group, choiceOf(files));
    this.save();
  }

  save() {
    try {
      localStorage.setItem(KEY, JSON.stringify({ run: this.run, groups: [...this.groups] }));
    } catch {
      // no room: choices last as long as the page
    }
  }

  clear() {
    this.groups.clear();
    this.save();
  }

  /** Groups that are decided, files that move, and their bytes. */
  totals() {
    const files = [...this.groups.values()].flatMap((choice) => choice.move);
    return { groups: this.groups.size, files: files.length, bytes: files.reduce((sum, file) => sum + file.bytes, 0) };
  }

  /** As the API takes them. */
  forApi() {
    return [...this.groups].map(([group, { move }]) => ({ group, move: move.map((file) => file.file) })).filter((choice) => choice.move.length);
  }
}

function choiceOf(files) {
  return { move: files.map(({ file, bytes }) => ({ file, bytes })) };
}

/** The files of a group that could move and have not. */
export function suggested(group) {
  return group.members.filter((member) => member.spare && !member.moved);
}
